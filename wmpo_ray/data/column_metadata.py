"""What a Parquet file says of its columns, checked before anybody looks at it."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq


def open_all_columns(path: Path, file: pq.ParquetFile) -> None:
    """Have Arrow's reader open each column of each row group of an open file; none is read. Raises what Parquet raises.

    Asked for the metadata of a column, Arrow ends the process over some that are damaged (a histogram of a wrong size, an
    encrypted column); its reader raises over the same. A batch of no rows from a memory map reads no page.
    """
    with pq.ParquetFile(path, metadata=file.metadata, memory_map=True) as other:
        for number in range(other.metadata.num_row_groups):
            list(other.reader.iter_batches(0, row_groups=[number]))
