"""python -m ntpguard.cli"""

from ntpguard.cli import main

main()
