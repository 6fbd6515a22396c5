"""The configuration: `resolve(words)` merges files and flags and checks the result without importing torch."""

from launch.config.resolved import Resolved, resolve

__all__ = ["Resolved", "resolve"]
