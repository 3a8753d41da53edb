"""``python -m pylvs``."""

from pylvs.cli.main import main

raise SystemExit(main())
