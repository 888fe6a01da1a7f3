import sys

from benchmarks.doctor import main

sys.exit(main())
