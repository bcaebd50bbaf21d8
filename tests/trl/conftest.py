"""TRL needs Python 3.11; without it these tests are not collected."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("trl") else ["*"]
