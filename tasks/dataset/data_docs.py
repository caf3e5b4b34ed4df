"""Where Great Expectations keeps its Data Docs."""

from great_expectations.data_context.store.tuple_store_backend import TupleFilesystemStoreBackend


class SortedFiles(TupleFilesystemStoreBackend):
    """Pages in a folder; the index has them in the order in which they are listed here."""

    def list_keys(self, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        """Keys of the pages, by name: file systems list a folder each in an order of its own."""
        return sorted(super().list_keys(prefix))
