"""As in the Trainer's tests: every training run collects garbage, which is slow with the libraries' many objects."""

from tests.trainer.conftest import frozen_libraries

__all__ = ["frozen_libraries"]
