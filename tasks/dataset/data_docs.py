"""Storage of the pages of Great Expectations (Data Docs)."""

from great_expectations.data_context.store.tuple_store_backend import TupleFilesystemStoreBackend


class SortedFilesystemStore(TupleFilesystemStoreBackend):
    """Pages in a folder. The index page lists them in the order of :meth:`list_keys`."""

    def list_keys(self, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        """Keys of the pages, sorted, because the order of files depends on the file system."""
        return sorted(super().list_keys(prefix))
