"""subtune-deploy: one backbone, many tasks, one engine. See README.md and docs/design.md."""

__version__ = "0.1.0"
