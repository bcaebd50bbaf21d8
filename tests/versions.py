"""What is tested only where the installed libraries have it: their lowest supported versions are tested too."""

from __future__ import annotations

import accelerate
import pytest
import transformers
from packaging.version import Version


def has_transformers(version: str) -> bool:
    return Version(transformers.__version__) >= Version(version)


def has_accelerate(version: str) -> bool:
    return Version(accelerate.__version__) >= Version(version)


def since_transformers(version: str, what: str) -> pytest.MarkDecorator:
    """Skips with earlier versions. `what` is new in this one."""
    return pytest.mark.skipif(not has_transformers(version), reason=f"since Transformers {version}: {what}")


def since_accelerate(version: str, what: str) -> pytest.MarkDecorator:
    """The same of Accelerate."""
    return pytest.mark.skipif(not has_accelerate(version), reason=f"since Accelerate {version}: {what}")
