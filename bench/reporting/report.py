"""The report: one page of a store, that needs no server and no network.

Its summary warns first; then there are the tables, every cell, figures, sheets, failures, provenance and the commands that make it again.
"""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

import pandas as pd

from bench import ROOT
from bench.grid.store import ResultStore
from bench.reporting.comparable import CellQuery, ComparableCells, comparable_cells
from bench.reporting.figures import pictures
from bench.reporting.formats import data_attributes, html
from bench.reporting.style import rendered
from bench.reporting.tables import tables

ASSETS = ROOT / "bench" / "reporting"
LIMIT_BYTES = 10_000_000  # of the page
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
FILTERS = ("dataset", "shots", "method", "seed")
TITLES = {"dataset": "data set"}
ORIGINS = {
    "commit": "provenance.git.commit",
    "uncommitted changes": "provenance.git.dirty",
    "device": "provenance.device_name",
    "torch": "provenance.packages.torch",
    "Python": "provenance.python",
    "checkpoint": "checkpoint_sha256",
}
AGAIN = """python -m bench.tables --like all --format md,csv,latex,html --out {out}
python -m bench.export --out {out}
python -m bench.figures --out {out}
python -m bench.report --out {out}"""


def report(store: ResultStore) -> str:
    """The page of a store; RequestError where it has no cell at all."""
    found = comparable_cells(store, CellQuery())
    scan = store.scan()
    sections = {
        "Summary": _summary(found, scan.table),
        "Tables": "\n".join([_filters(found), *_tables(store)]),
        "Cells": _cells(found),
        "Figures": "",
        "Sheets": "",
        "Failures and gaps": _failures(found),
        "Provenance": _provenance(scan.table),
        "How to make this again": _commands(store, scan.table),
    }
    rest = LIMIT_BYTES - 200_000 - sum(len(text.encode()) for text in sections.values())
    drawn = [(name, caption, "svg+xml", content) for name, caption, content in _figures(store)]
    sheets = [(path.name, f"Predictions: {path.stem.removeprefix('predictions_')}", "png", path.read_bytes()) for path in _sheets(store)]
    sections["Figures"], rest = _inlined(drawn, rest)
    sections["Sheets"], _ = _inlined(sheets, rest)
    return _page(sections)


def _page(sections: Mapping[str, str]) -> str:
    ids = {title: title.lower().replace(" ", "-") for title in sections}
    links = "".join(f'<li><a href="#section-{ids[title]}">{title}</a></li>' for title in sections)
    body = "\n".join(
        f'<section aria-labelledby="section-{ids[title]}"><h2 id="section-{ids[title]}">{title}</h2>\n{text}</section>'
        for title, text in sections.items()
    )
    style, script = ((ASSETS / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>sam-peft-bench: results</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<header><h1>sam-peft-bench: results</h1>
<nav aria-label="Sections"><ul>{links}</ul></nav></header>
<main id="main">
{body}
</main>
<script>
{script}</script>
</body>
</html>
"""


def _summary(found: Sequence[ComparableCells], table: pd.DataFrame) -> str:
    gaps = [gap for comparable in found for of in comparable.gaps.values() for gap in of]
    phases = {phase: sum(gap[1] == phase for gap in gaps) for phase in ("failed", "unfinished", "pending")}
    said = ", ".join(f"{count} {phase}" for phase, count in phases.items() if count)
    lines = [f"<p>{len(table)} cells are stored{f'; of those asked for last: {said}' if said else ''}.</p>"]
    warned = [note for comparable in found for note in (*comparable.warnings, *comparable.notes)]
    lines += [f'<p class="warning" role="note">{escape(note)}</p>' for note in dict.fromkeys(warned)]
    for comparable in found:
        context = " · ".join(f"{name} {value}" for name, value in comparable.context)
        best = [f"{escape(dataset)}: {_best(comparable, dataset)}" for dataset in comparable.datasets]
        lines.append(f"<p>{escape(context)}<br>Highest mIoU: {'; '.join(best)}. Whether that is luck, the tables say.</p>")
    return "\n".join(lines)


def _best(comparable: ComparableCells, dataset: str) -> str:
    values = {label: value for label in comparable.labels_of([dataset]) if (value := comparable.cell(label, dataset).value) is not None}
    return escape(max(values, key=lambda label: values[label])) + f" {max(values.values()):.1f}" if values else "none yet"


def _tables(store: ResultStore) -> Iterator[str]:
    for table in tables(store, CellQuery(), "all"):
        region = f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(table.title)}, scrolls sideways">'
        yield html(table).replace('<div class="scroll">', region)


def _cells(found: Sequence[ComparableCells]) -> str:
    """Every current cell as a row."""
    rows = [row for comparable in found for row in _cell_rows(comparable)]
    heads = (*FILTERS, "draw", "backbone", "protocol", "selection", "mIoU %", "state")
    body = "\n".join(_cell_html(row, heads) for row in rows)
    head = "".join(f'<th scope="col">{TITLES.get(name, name)}</th>' for name in heads)
    return f"""<div class="scroll" role="region" tabindex="0" aria-label="Every cell, scrolls sideways"><table id="cells">
<caption>Every cell that is stored or was asked for last</caption>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody></table></div>
"""


def _filters(found: Sequence[ComparableCells]) -> str:
    """The controls that filter every table of the page: rows, columns, and tables of one number of shots."""
    rows = [row for comparable in found for row in _cell_rows(comparable)]
    options = {name: sorted({row[name] for row in rows}, key=lambda text: (not text.isdigit(), text.zfill(9))) for name in FILTERS}
    selects = "".join(
        f'<label>{TITLES.get(name, name)}<select data-field="{name}"><option value="">all</option>'
        f"{''.join(f'<option>{escape(value)}</option>' for value in options[name])}</select></label>"
        for name in FILTERS
    )
    return f"""<form class="filters" aria-label="Filter all tables">{selects}
<label>row contains<input type="search" data-field="text"></label><button type="reset">show all</button></form>
<p id="shown" role="status" aria-live="polite">{len(rows)} cells</p>"""


def _cell_rows(comparable: ComparableCells) -> Iterator[dict[str, str]]:
    backbone, protocol, shots, _ = comparable.identity
    same = {"shots": shots, "backbone": backbone, "protocol": protocol, "selection": comparable.selection}
    for (label, dataset), scores in sorted(comparable.scores.items()):
        for (draw, seed), value in sorted(scores.items()):
            run = {"dataset": dataset, "method": label, "draw": str(draw), "seed": str(seed)}
            yield {**same, **run, "mIoU %": "" if pd.isna(value) else repr(value), "state": "stored"}
    for (label, dataset), gaps in sorted(comparable.gaps.items()):
        for (draw, seed), phase, _ in gaps:
            yield {**same, "dataset": dataset, "method": label, "draw": str(draw), "seed": str(seed), "mIoU %": "", "state": phase}


def _cell_html(row: Mapping[str, str], heads: Iterable[str]) -> str:
    data = data_attributes((name, row[name]) for name in FILTERS)
    cells = []
    for name in heads:
        if name == "mIoU %" and row[name]:
            cells.append(f'<td data-value="{row[name]}">{float(row[name]):.2f}</td>')
        else:
            cells.append(f'<td class="text">{escape(row[name] or "-")}</td>')
    return f"<tr{data}>{''.join(cells)}</tr>"


def _figures(store: ResultStore) -> Iterator[tuple[str, str, bytes]]:
    for picture in pictures(store, CellQuery()):
        with picture.draw() as figure:
            yield picture.name, picture.caption, rendered(figure, "svg")


def _sheets(store: ResultStore) -> list[Path]:
    return sorted((store.root / "figures").glob("predictions_*.png"))


def _inlined(items: Iterable[tuple[str, str, str, bytes]], rest: int) -> tuple[str, int]:
    """Pictures as data of the page while there is room for them, and the room that is left; the others are named."""
    parts, left_out = [], []
    for name, caption, kind, content in items:
        if len(content) * 4 // 3 + 500 > rest:
            left_out.append(name)
            continue
        data = base64.b64encode(content).decode()
        shown = escape(caption)
        picture = f'<img alt="{shown}" src="data:image/{kind};base64,{data}">'
        region = f'<div class="scroll" role="region" tabindex="0" aria-label="{shown}, scrolls sideways on a small screen">'
        parts.append(f"<figure>{region}{picture}</div><figcaption>{shown}</figcaption></figure>")
        rest -= len(parts[-1].encode())
    if left_out:
        parts.append(f'<p class="warning">Left out to keep the page small, see the folder figures: {escape(", ".join(left_out))}.</p>')
    return "\n".join(parts) or "<p>None.</p>", rest


def _failures(found: Sequence[ComparableCells]) -> str:
    rows = []
    for comparable in found:
        for (label, dataset), gaps in sorted(comparable.gaps.items()):
            rows += [(dataset, label, comparable.identity[2], str(draw), str(seed), phase, why) for (draw, seed), phase, why in gaps]
    heads = ("dataset", "method", "shots", "draw", "seed", "state", "reason")
    return _listing("What was asked for and is not stored", heads, rows)


def _provenance(table: pd.DataFrame) -> str:
    if table.empty:
        return "<p>No cell is stored.</p>"
    origins = pd.DataFrame({name: table.get(column) for name, column in ORIGINS.items()})
    counted = origins.fillna("not known").astype(str).value_counts(sort=False).sort_index()
    rows = [(*key, str(count)) for key, count in counted.items()]  # type: ignore[misc]
    return _listing("Where the cells come from", (*ORIGINS, "cells"), rows)


def _commands(store: ResultStore, table: pd.DataFrame) -> str:
    ran = sorted(map(str, table["provenance.command"].dropna().unique())) if "provenance.command" in table else []
    again = AGAIN.format(out=store.root.name)
    return (
        f"<p>The cells were run by (each begins with the file of its module):</p><pre>{escape(chr(10).join(ran) or 'not known')}</pre>\n"
        f"<p>Tables, figures and this page come from the cells alone:</p><pre>{escape(again)}</pre>"
    )


def _listing(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "<p>None.</p>"
    head = "".join(f'<th scope="col">{escape(TITLES.get(name, name))}</th>' for name in heads)
    lines = ("".join(f'<td class="{_width(text)}">{escape(text)}</td>' for text in row) for row in rows)
    about = (data_attributes((name, text) for name, text in zip(heads, row, strict=True) if name in FILTERS) for row in rows)
    body = "\n".join(f"<tr{data}>{line}</tr>" for data, line in zip(about, lines, strict=True))
    label = f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}, scrolls sideways">'
    return f"{label}<table><caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"


def _width(text: str) -> str:
    return "long" if len(text) > 40 else "text"
