"""The source guard of an artifact: the function below is pasted, word for word, before the first class."""

import hashlib
import inspect
from importlib.metadata import version
from types import ModuleType


def check_sources(sources: dict[ModuleType, dict[str, str]]) -> None:
    """ImportError where the source of a class or function is not the one that this file was compiled against."""
    changed = []
    for module, digests in sources.items():
        for name, digest in digests.items():
            found = getattr(module, name, None)
            if found is None or hashlib.sha256(inspect.getsource(found).encode()).hexdigest() != digest:
                changed.append(f"{module.__name__}.{name}")
    if changed:
        raise ImportError(
            f"not the code that this file was compiled against, under transformers {version('transformers')}: "
            f"{', '.join(changed)}; recompile the spec with peftc, or install the version in peftc.lock.json"
        )
