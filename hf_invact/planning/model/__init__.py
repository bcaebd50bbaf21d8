"""The model that is planned: its config and class, how it is trained, its adapters; built without weights."""
