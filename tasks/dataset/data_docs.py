"""Where Great Expectations keeps its Data Docs."""

from great_expectations.data_context.store import TupleFilesystemStoreBackend


class SortedFiles(TupleFilesystemStoreBackend):
    """Pages in a folder, listed by name; else the index lists them as the file system happens to."""

    def list_keys(self, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        return sorted(super().list_keys(prefix))
