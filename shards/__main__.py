"""`python -m shards` is `shards`."""

from shards.cli import main

raise SystemExit(main())
