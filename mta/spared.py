"""Imports a library without the modules that it loads at once and we never use.

    with spared("aiofiles.tempfile"):
        import aiofiles                  # tempfile, shutil, bz2 and lzma stay where they are

A module that is spared is not missing: it is loaded when somebody uses it after all.  Only the library's own question
"package.module.name", while it is being imported, finds nothing; dnspython takes that for an add-on that is not
installed.  What this saves is memory of every process for as long as it lives, and time of the start.
"""

import contextlib
import importlib
import sys
import types
from collections.abc import Iterator
from functools import partial


class _Later(types.ModuleType):
    """Stands for a module until it is used."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # questions of the import system
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:  # "from module import name", and only a function can wait
            return partial(_call, self.__name__, name)
        return getattr(importlib.import_module(self.__name__), name)


def _call(module: str, name: str, /, *args: object, **kwargs: object) -> object:
    if isinstance(sys.modules.get(module), _Later):  # called while the library is still being imported
        del sys.modules[module]
    return getattr(importlib.import_module(module), name)(*args, **kwargs)


@contextlib.contextmanager
def spared(*modules: str) -> Iterator[None]:
    """Imports within do not load these; nothing changes for those that are loaded already."""
    absent = [name for name in modules if name not in sys.modules]
    for name in absent:
        sys.modules[name] = _Later(name)
    try:
        yield
    finally:
        for name in absent:
            if isinstance(sys.modules.get(name), _Later):
                del sys.modules[name]
