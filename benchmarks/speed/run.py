"""
Measure what a user pays: time and memory of each part at the published size, with random weights, compared with the
reference design (reference.py) and the machine's arithmetic limit.

    python benchmarks/speed/run.py
    python benchmarks/speed/run.py --only encoder --only pair
    python benchmarks/speed/run.py --smoke -o /tmp/smoke

measures on the CPU in fp32, and in bf16 if it has instructions for that; with `--device cuda` on a GPU, in both. Each
processor has its own file in results/speed, with a page and a picture; the table in docs/speed.md lists all of them.
Cases already measured with the same code are skipped, so that an interrupted run goes on; `--again` measures them
again.
"""

import json
from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from cases import OWN_FP32, SECTIONS, STEP_PAIRS, Case
from limits import Place, products_alone, rates
from machines import code_digest, describe, file_stem
from measuring import BANDWIDTH_BYTES, REPETITIONS, compare, read_bandwidth
from operations import Product, encoder_products, language_model_products, projector_products, total, weight_bytes
from scale import measure_tables
from speed_report import machine_page, update_document, write_pages
from workbench import Workbench, forms_of_layers

from modeling_xacle.data.files import write_json

RESULTS = Path(__file__).parents[1] / "results/speed"
# The files on which figures depend.
MEASURING = ("cases", "limits", "measuring", "operations", "reference", "training_steps", "workbench")
CODE = ("modeling_xacle/**/*.py", *(f"benchmarks/speed/{name}.py" for name in MEASURING))
# Largest difference between our scores and the reference's, one pair at a time in fp32, on the 0-10 scale.
AGREEMENT = 1e-4
Section = StrEnum("Section", [*SECTIONS, "scale"])
Device = StrEnum("Device", ["cpu", "cuda"])
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# The dtypes measured on a device; bf16 on CPUs is a section of its own.
COLUMNS = {"cpu": ("fp32",), "cuda": ("fp32", "bf16")}


def check_agreement(bench: Workbench) -> float:
    """
    Returns the largest difference between our scores and the reference's, one pair at a time.

    Raises:
        ValueError: The scores do not agree.
    """
    differences = []
    for index, caption in enumerate(bench.captions(2)):
        pair = bench.waveforms(2)[index : index + 1], [caption]
        ours, plain = in_form(True, bench, bench.scores), in_form(False, bench, bench.reference_scores)
        differences.append(abs(ours(*pair).item() - plain(*pair).item()))
    if bench.dtype == torch.float32 and max(differences) > AGREEMENT:
        raise ValueError(f"Scores differ from the reference's by {max(differences):g}.")
    return max(differences)


def model_products(bench: Workbench) -> list[Product]:
    """Returns the model's own matrix products at batch 8."""
    length = bench.config.num_audio_tokens + 18
    return [
        *encoder_products(bench.config, STEP_PAIRS, bench.num_frames),
        *projector_products(bench.config, STEP_PAIRS),
        *language_model_products(bench.config, STEP_PAIRS, length),
    ]


def measure_capacity(bench: Workbench) -> dict[str, Any]:
    """Measures what the device can do: operations a second in the model's matrix products, bytes a second read."""
    num_bytes = BANDWIDTH_BYTES // (2**10 if bench.small else 1)
    return {
        "rates": rates(model_products(bench), Place(bench.device, bench.dtype)),
        "bandwidth": read_bandwidth(bench.device, num_bytes),
        "score difference": check_agreement(bench),
    }


def in_form(fast: bool, bench: Workbench, call: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a call so that layers compute as ours do, or as the published system's."""

    @wraps(getattr(call, "func", call))
    def within(*arguments: Any) -> Any:
        with forms_of_layers(fast, bench.captioner):
            return call(*arguments)

    return within


def measure_case(case: Case, bench: Workbench, repetitions: int) -> list[dict[str, Any]]:
    """
    Returns a row of results for each of our forms. For the limit, the form's matrix products run in turn with it, and
    the share compares the fastest runs of both.
    """
    place = Place(bench.device, bench.dtype)
    alone = {form: products_alone(products, place) for form, products in case.products.items()}
    calls = {form: in_form(True, bench, call) for form, call in case.ours.items()}
    if case.reference:
        calls["reference"] = in_form(case.beside == OWN_FP32, bench, case.reference)
    calls |= {f"products of {form}": run for form, (run, _) in alone.items()}
    found = compare(calls, bench.device, repetitions, case.calls)
    rows = []
    for form in case.ours:
        ours, row = found[form], {"case": case.name + form.removeprefix("ours"), "items": case.items}
        row["ours"] = ours
        if case.reference:
            plain = found["reference"]
            row |= {"beside": case.beside, "reference": plain, "ratio": plain["seconds"] / ours["seconds"]}
        if case.beside == OWN_FP32:
            row["score difference"] = (calls["ours"]() - calls["reference"]()).abs().max().item()
        if form in alone:
            products = case.products[form]
            limit = found[f"products of {form}"]["fastest"] * alone[form][1]
            row |= {"operations": total(products), "weight bytes": weight_bytes(products), "limit": limit}
            row["of the limit"] = limit / ours["fastest"]
        rows.append(row)
    return rows


def measure(
    device: str, dtype: str, sections: list[str], results: dict[str, Any], small: bool = False, repetitions: int = 1
) -> Iterator[str]:
    """Measure sections into the results, except what this code measured before; yields the name of each new case."""
    bench = Workbench(torch.device(device), DTYPES[dtype], small)
    column = results.setdefault(dtype, {"sections": {}})
    column["capacity"] = measure_capacity(bench)
    code, known = code_digest(CODE), column["sections"]
    for section in sections:
        if known.get(section, {}).get("code") != code:
            known[section] = {"code": code, "done": [], "rows": []}
        for case in SECTIONS[section](bench):
            if case.name not in known[section]["done"]:
                known[section]["rows"] += measure_case(case, bench, repetitions)
                known[section]["done"].append(case.name)
                yield case.name
    column["sections"] = {name: known[name] for name in SECTIONS if name in known}


def main(
    only: Annotated[list[Section] | None, typer.Option(help="Sections to measure; by default all.")] = None,
    device: Annotated[Device, typer.Option(help="What to measure.")] = Device.cpu,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.")] = RESULTS,
    again: Annotated[bool, typer.Option(help="Measure anew what this code has measured.")] = False,
    smoke: Annotated[bool, typer.Option(help="A small model, once: to see that all works.")] = False,
    repetitions: Annotated[int, typer.Option(min=1, help="Runs of a case, of which the median counts.")] = REPETITIONS,
) -> None:
    """Measure speed and memory."""
    if smoke and output == RESULTS:
        raise typer.BadParameter("--smoke would overwrite what was measured: name another folder with --output.")
    if device == Device.cuda and not torch.cuda.is_available():
        raise typer.BadParameter("--device cuda: PyTorch finds no GPU here.")
    machine = describe(torch.device(device.value))
    file = output / f"{file_stem(machine)}.json"
    results = json.loads(file.read_text()) if file.exists() else {"machine": machine}
    chosen = [section.value for section in only or Section]
    timed = [section for section in chosen if section in SECTIONS]
    output.mkdir(parents=True, exist_ok=True)
    if again:
        for dtype, section in [(dtype, section) for dtype in COLUMNS[device.value] for section in timed]:
            results.get(dtype, {"sections": {}})["sections"].pop(section, None)
    for dtype in COLUMNS[device.value] if timed else ():
        for case in measure(device.value, dtype, timed, results, smoke, 1 if smoke else repetitions):
            typer.echo(f"{dtype}: {case}", err=True)
            write_json(file, results)
    if "scale" in chosen and device == Device.cpu:
        results["scale"] = measure_tables(smoke)
    write_json(file, results)
    write_pages(output)
    if output == RESULTS:
        update_document(output)
    typer.echo(machine_page(results))


if __name__ == "__main__":
    typer.run(main)
