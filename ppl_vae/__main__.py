"""`python -m ppl_vae`."""

import sys

from ppl_vae.cli import main

if __name__ == "__main__":
    sys.exit(main())
