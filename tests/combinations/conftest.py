"""As for the tests of the Trainer: every training run collects garbage, and the libraries' own objects are many."""

from tests.trainer.conftest import frozen_libraries

__all__ = ["frozen_libraries"]
