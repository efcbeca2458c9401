"""What the models of a COCONUT sweep answer to the questions of other files, such as the published ones, by cell.

    python benchmarks/prosqa_files.py results/coconut-prosqa prosqa-valid.parquet prosqa-ood7hop.parquet …

Each question is asked as in the last stage, with thoughts in the place of every step. Questions that do not fit into
the models' context are left out, and counted. The table goes into docs/probes.md.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import tyro
from protocol import write_rows

from lahr.data.corpora import END_OF_TEXT
from lahr.data.prosqa import document, settings
from lahr.data.prosqa_files import read_questions
from lahr.errors import check
from lahr.trained import Trained, find
from sweeps.analysis.effects import t_interval
from sweeps.engine.results import Results

PAGE = Path(__file__).parents[1] / "docs" / "probes.md"
ANSWER = 2
"""Tokens of an answer, the last of its document: who, and of what class."""


def main(sweep: tyro.conf.Positional[Path], files: tyro.conf.Positional[list[Path]], batch: int = 50) -> None:
    """Asks every finished model of the sweep all questions, and writes the table."""
    asked = {path.stem: read_questions(path) for path in files}
    results = Results.at(str(sweep.absolute().parent), sweep.name)
    trials = results.table(results.design())
    diverged = int((trials["status"] != "finished").sum())
    if diverged:
        print(f"{diverged} diverged trials are not asked")
    trials = trials[trials["status"] == "finished"]
    check(len(trials) > 0, f"{sweep} has no finished trial that this version of the code would make")
    shares: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    left_out: dict[str, int] = {}
    for number, (trial, cell) in enumerate(zip(trials["trial"], trials["cell"], strict=True), 1):
        trained = find(str(sweep / "trials" / trial))
        said = settings(trained.config.data.corpus)
        for name, questions in asked.items():
            texts = [document(question, said.stages, said.stages, said.c).text for question in questions]
            right = answers(trained, texts, batch)
            context = trained.config.model.max_seq_len
            check(len(right) > 0, f"no question of {name} fits into the {context} tokens of {trial}; leave it out")
            left_out[name] = len(texts) - len(right)
            shares[cell][name].append(100 * float(np.mean(right)))
        print(
            f"{number} of {len(trials)}: {cell}",
            {name: round(shares[cell][name][-1], 1) for name in asked},
            flush=True,
        )

    def shown(cell: str, name: str) -> str:
        of_seeds = np.array(shares[cell][name])
        mean, low, _ = t_interval(of_seeds)
        return f"{mean:.1f} ± {mean - low:.1f}" if len(of_seeds) > 1 else f"{mean:.1f}"

    lines = [f"| accuracy, % | {' | '.join(shares)} |", f"| --- |{' ---: |' * len(shares)}"]
    lines += [
        f"| `{name}`, {len(asked[name]) - left_out[name]:,} of {len(asked[name]):,} questions | "
        + " | ".join(shown(cell, name) for cell in shares)
        + " |"
        for name in asked
    ]
    write_rows(PAGE, "<!-- prosqa files -->", "<!-- end: prosqa files -->", "\n".join(lines))


@torch.no_grad()
def answers(trained: Trained, texts: list[str], batch: int) -> list[bool]:
    """Whether each text's answer is the likeliest one, of those that fit into the context."""
    end = trained.tokenizer.token_to_id(END_OF_TEXT)
    rows = [[end, *trained.tokenizer.encode(text).ids] for text in texts]
    rows = [row for row in rows if len(row) <= trained.config.model.max_seq_len + 1]
    right: list[bool] = []
    for first in range(0, len(rows), batch):
        some = rows[first : first + batch]
        width = max(map(len, some))
        tokens_BT = torch.tensor([row + [end] * (width - len(row)) for row in some])
        with torch.autocast("cpu", torch.bfloat16, enabled=trained.config.precision == "bf16"):
            likeliest_BT = trained.model(tokens_BT[:, :-1]).argmax(-1)
        for row, likeliest_T in zip(some, likeliest_BT, strict=True):
            own = slice(len(row) - 1 - ANSWER, len(row) - 1)
            right.append(likeliest_T[own].tolist() == row[-ANSWER:])
    return right


if __name__ == "__main__":
    tyro.cli(main)
