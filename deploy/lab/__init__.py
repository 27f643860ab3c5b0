"""Real libvirt hosts and a control plane on one Linux machine, each in namespaces of its own.

For tests and for trying the product by hand. It must not be imported by the product, and it must leave the machine
as it found it: no link, address, route or mount outside the namespaces it makes.
"""
