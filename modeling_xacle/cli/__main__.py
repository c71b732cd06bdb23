"""`accelerate launch --module modeling_xacle.cli score PAIRS -o OUT`."""

from .main import main

main()
