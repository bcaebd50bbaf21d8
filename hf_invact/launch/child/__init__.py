"""Put on PYTHONPATH by `hf-invact run`, for the processes that a script starts."""
