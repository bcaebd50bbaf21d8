"""Tables and figures of bytes, which several parts print and draw. It imports no other part of the package."""
