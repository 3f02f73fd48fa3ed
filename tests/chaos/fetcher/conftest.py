"""What the long proofs of the fetcher share with its integration tests."""

from tests.integration.fetcher.conftest import nx_uri, pictures, run_fetcher, settings, source

__all__ = ["nx_uri", "pictures", "run_fetcher", "settings", "source"]
