"""``python -m mminstruct``."""

from mminstruct_command import main

main()
