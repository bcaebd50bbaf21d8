"""The operators as PyTorch knows them."""
