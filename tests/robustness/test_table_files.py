"""CSV tables that a results folder has from elsewhere: whatever reads one says in one line what is wrong with it."""

from __future__ import annotations

import pandas as pd
import pytest

from effopd.common.errors import ArtifactError
from effopd.report.table_columns import COLUMNS, NAMES, WORDS
from effopd.report.tables import read_csv, write_csv


def right(name):
    return pd.DataFrame({column: ["a", "b"] if column in (*NAMES, *WORDS) else [0.5, 2] for column in COLUMNS[name]})


@pytest.mark.parametrize("name", COLUMNS)
def test_a_table_without_one_of_its_columns_is_refused(tmp_path, name):
    path = tmp_path / f"{name}.csv"
    write_csv(path, right(name))
    assert list(read_csv(path)) == [*COLUMNS[name]]
    write_csv(path, right(name).head(0))
    assert len(read_csv(path)) == 0
    for column in COLUMNS[name]:
        write_csv(path, right(name).drop(columns=column))
        with pytest.raises(ArtifactError, match=rf"/{name}\.csv lacks the column `{column}`\. Delete it and run"):
            read_csv(path)


@pytest.mark.parametrize("cell", ["x", "1.5.2", "0,5", " ", "--", "1 %", "True-ish"])
@pytest.mark.parametrize("name", COLUMNS)
def test_text_in_the_place_of_a_number_is_refused(tmp_path, name, cell):
    path = tmp_path / f"{name}.csv"
    column = next(column for column in COLUMNS[name] if column not in (*NAMES, *WORDS))
    table = right(name).astype({column: object})
    table.loc[1, column] = cell
    write_csv(path, table)
    with pytest.raises(ArtifactError) as caught:
        read_csv(path)
    assert f"/{name}.csv: `{column}` is {cell!r} in row 2, not a number. Delete it" in str(caught.value)


@pytest.mark.parametrize("cells", [[True, None], [False, True], [None, None], [1, None], ["1e-300", "inf"], [0, "nan"]])
def test_cells_that_a_stage_may_leave_are_read(tmp_path, cells):
    path = tmp_path / "any.csv"
    write_csv(path, pd.DataFrame({"run": ["a", "b"], "reached": cells}))
    assert len(read_csv(path)) == len(cells)


@pytest.mark.parametrize("name", COLUMNS)
def test_cells_do_not_move_where_rows_end_with_a_comma(tmp_path, name):
    path = tmp_path / f"{name}.csv"
    write_csv(path, right(name))
    wanted = read_csv(path)
    first, *rows = path.read_text().splitlines()
    path.write_text("\n".join([first, *(f"{row}," for row in rows)]) + "\n")
    pd.testing.assert_frame_equal(read_csv(path), wanted)
