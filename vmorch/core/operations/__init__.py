"""One module per operation on a VM. Importing this package registers them all.

An operation is a command, the plan that reaches its target, and the fact it establishes. Adding one is adding
a module here; its CLI verb, HTTP route, schema and contract tests follow from the registry.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
