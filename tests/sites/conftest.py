from tests.registries import calls, own_registries

__all__ = ["calls", "own_registries"]
