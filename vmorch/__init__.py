"""vmorch: an event-sourced orchestrator of virtual machines for libvirt/KVM hosts."""

__version__ = "0.1.0"
