"""The filter that a server runs: reading TARGET, and importing what it names.

TARGET is ``module:Class`` or ``path/to/file.py:Class``; a dotted name after the colon reaches nested classes.
Reading it (``parse_target``) imports nothing and is all that a master ever does. Importing it (``load_filter``) is the
business of a worker and of ``--check-config``: the code of the user runs then.
"""

import difflib
import importlib
import importlib.util
import os
import sys
import traceback
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from fastmilter.errors import ConfigError

if TYPE_CHECKING:
    from fastmilter.filter import Filter

_FORM: Final = "write module:Class or path/to/file.py:Class"

_importing: ContextVar[bool] = ContextVar("importing a filter", default=False)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a filter class is: a module or a file, and the name of the class within it."""

    module: str
    """A dotted module name, or "" if the class is in a file."""
    path: str
    """The path of a file, or "" if the class is in a module."""
    qualname: str
    """The name of the class; dots reach into outer classes."""

    @property
    def name(self) -> str:
        """The last part of the class's name, as titles and logs show it."""
        return self.qualname.rpartition(".")[2]

    def __str__(self) -> str:
        """Return TARGET as it would be written."""
        return f"{self.module or self.path}:{self.qualname}"


def parse_target(text: str) -> Target:
    """Read TARGET without importing anything; ``ConfigError`` says what is wrong with it.

    >>> parse_target("gateway.filters:Tagger").module
    'gateway.filters'
    >>> parse_target("./tagger.py:Tagger")
    Target(module='', path='./tagger.py', qualname='Tagger')
    """
    place, colon, qualname = text.rpartition(":")
    if not colon or not place or not qualname:
        raise ConfigError(f"{text!r} does not name a class in a module: {_FORM}")
    if not all(part.isidentifier() for part in qualname.split(".")):
        raise ConfigError(f"{qualname!r} in {text!r} is not the name of a class: {_FORM}")
    if place.endswith(".py") or os.sep in place:
        return Target("", place, qualname)
    if not all(part.isidentifier() for part in place.split(".")):
        raise ConfigError(f"{place!r} in {text!r} is neither a module nor a path that ends in .py: {_FORM}")
    return Target(place, "", qualname)


def importing() -> bool:
    """Tell whether this process is importing a filter just now (a filter's module must not start a server)."""
    return _importing.get()


def load_filter(target: Target) -> "type[Filter[Any]]":
    """Import the filter class that ``target`` names.

    Puts the current directory, or the directory of the file, in front of ``sys.path``, where it stays for the imports
    that the filter makes later. Raises ``ConfigError`` with the traceback of the module if importing it fails.
    """
    from fastmilter.filter import Filter  # here, so that a master can read a TARGET without loading all of it

    token = _importing.set(True)
    try:
        module = _import_file(target) if target.path else _import_module(target)
    finally:
        _importing.reset(token)
    found: Any = module
    for part in target.qualname.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ConfigError(_missing(target, module, Filter)) from None
    if not isinstance(found, type) or not issubclass(found, Filter):
        is_what = "is a class, but not" if isinstance(found, type) else f"is a {type(found).__name__}, not"
        raise ConfigError(f"{target}: {target.qualname} {is_what} a subclass of fastmilter.Filter")
    return found


def _put_first_on_path(directory: str) -> None:
    """Make ``directory`` the first place where modules are looked for."""
    if directory in sys.path:
        sys.path.remove(directory)
    sys.path.insert(0, directory)
    # As importlib.invalidate_caches(), which in Python 3.13 imports something first: as the user that a worker has
    # become, who may not be able to read it.
    for path, finder in list(sys.path_importer_cache.items()):
        if finder is None:
            del sys.path_importer_cache[path]
        elif hasattr(finder, "invalidate_caches"):
            finder.invalidate_caches()


def _import_module(target: Target) -> ModuleType:
    _put_first_on_path(os.getcwd())
    try:
        return importlib.import_module(target.module)
    except ModuleNotFoundError as error:
        if error.name is None or not (target.module + ".").startswith(error.name + "."):
            raise ConfigError(_broken(target, error)) from error
        hint = ""
        if os.path.exists(f"{target.module}.py"):
            hint = " (it is there, but cannot be found: is a package of that name in the way?)"
        elif os.path.exists(target.module.replace(".", os.sep)):
            hint = f" ({target.module.replace('.', os.sep)} is there, but not as a package)"
        raise ConfigError(
            f"{target}: there is no module {error.name!r} in the current directory {os.getcwd()!r}"
            f" or where Python looks otherwise{hint}"
        ) from None
    except (Exception, SystemExit) as error:
        raise ConfigError(_broken(target, error)) from error


def _import_file(target: Target) -> ModuleType:
    path = os.path.abspath(target.path)
    if not os.path.isfile(path):
        what = "is a directory" if os.path.isdir(path) else "does not exist"
        raise ConfigError(f"{target}: the file {target.path!r} {what}")
    name = os.path.splitext(os.path.basename(path))[0]
    if name in sys.stdlib_module_names:
        raise ConfigError(f"{target}: a file of this name hides Python's own module {name!r}: rename it")
    _put_first_on_path(os.path.dirname(path))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{target}: the file {target.path!r} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(_broken(target, error)) from error
    return module


def _broken(target: Target, error: BaseException) -> str:
    """Tell why a module could not be imported, with that part of the traceback that is the user's."""
    entries = error.__traceback__
    while entries is not None and _is_machinery(entries.tb_frame.f_code.co_filename):
        entries = entries.tb_next
    text = "".join(traceback.format_exception(type(error), error, entries)).rstrip()
    return f"{target} cannot be imported:\n{text}"


def _is_machinery(filename: str) -> bool:
    return filename in (__file__, importlib.__file__) or filename.startswith("<frozen importlib")


def _missing(target: Target, module: ModuleType, filter_class: type) -> str:
    """Tell that the class is not there, and which ones are."""
    names = sorted(
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, filter_class) and value.__module__ == module.__name__
    )
    text = f"{target}: there is no {target.qualname!r} in {target.module or target.path}"
    close = difflib.get_close_matches(target.qualname, names, n=1)
    if close:
        return f"{text}; did you mean {close[0]}?"
    if names:
        return f"{text}; its filters are: {', '.join(names)}"
    return f"{text}, nor any other subclass of fastmilter.Filter"
