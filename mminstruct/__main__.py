"""``python -m mminstruct``."""

from mminstruct.cli import main

main()
