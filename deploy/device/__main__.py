"""`python -m deploy.device EXPORT --prompt …`"""

import sys

from deploy.device.command import main

if __name__ == "__main__":
    sys.exit(main())
