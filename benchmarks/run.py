"""
What a user pays: time and memory of each part at published size, with random weights, beside the reference design
(reference.py) and the arithmetic limit of the machine.

    python benchmarks/run.py
    python benchmarks/run.py --only encoder --only pair
    python benchmarks/run.py --smoke -o /tmp/smoke

measures on the CPU in fp32 and, where there is a GPU, there in fp32 and bf16. It writes speed.json, speed.md and
speed.png; sections that are not measured stay as they were.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from cases import SECTIONS, STEP_PAIRS, Case
from measuring import (
    BANDWIDTH_BYTES,
    REPETITIONS,
    compare,
    device_name,
    product_rates,
    products_alone,
    read_bandwidth,
)
from operations import encoder_products, language_model_products, projector_products, total, weight_bytes
from scale import measure_tables
from speed_report import as_markdown, draw_speed
from workbench import Workbench

from modeling_xacle.figures import figure_bytes

RESULTS = Path(__file__).parent / "results"
# Our scores and the reference's, one pair at a time in fp32, on the 0-10 scale.
AGREEMENT = 1e-4
Section = StrEnum("Section", [*SECTIONS, "scale"])


def targets() -> list[tuple[torch.device, torch.dtype]]:
    """Devices and dtypes to measure."""
    found = [(torch.device("cpu"), torch.float32)]
    if torch.cuda.is_available():
        found += [(torch.device("cuda"), dtype) for dtype in (torch.float32, torch.bfloat16)]
    return found


def column(device: torch.device, dtype: torch.dtype) -> str:
    """Name of a device and dtype in the results."""
    return f"{device.type} {'bf16' if dtype == torch.bfloat16 else 'fp32'}"


def check_agreement(bench: Workbench) -> float:
    """
    Largest difference of our scores from the reference's, one pair at a time.

    Raises:
        ValueError: They are not the same scores.
    """
    differences = []
    for index, caption in enumerate(bench.captions(2)):
        waveform = bench.waveforms(2)[index : index + 1]
        ours, plain = (score(waveform, [caption]).item() for score in (bench.scores, bench.reference_scores))
        differences.append(abs(ours - plain))
    if bench.dtype == torch.float32 and max(differences) > AGREEMENT:
        raise ValueError(f"Scores differ from the reference's by {max(differences):g}.")
    return max(differences)


def machine(bench: Workbench, repetitions: int) -> dict[str, Any]:
    """What the device can do: operations a second in the model's own matrix products, bytes a second read."""
    length = bench.config.num_audio_tokens + 18
    products = [
        *encoder_products(bench.config, STEP_PAIRS, bench.num_frames),
        *projector_products(bench.config, STEP_PAIRS),
        *language_model_products(bench.config, STEP_PAIRS, length),
    ]
    rates = product_rates(products, bench.device, bench.dtype, repetitions)
    num_bytes = BANDWIDTH_BYTES // (2**10 if bench.small else 1)
    return {
        "name": device_name(bench.device),
        "rate": rates["ours"],
        "default rate": rates["default"],
        "bandwidth": read_bandwidth(bench.device, num_bytes, repetitions),
        "score difference": check_agreement(bench),
    }


def measure_case(case: Case, bench: Workbench, repetitions: int) -> list[dict[str, Any]]:
    """A row of the results for each of our forms, whose matrix products run in turn with it, for the limit."""
    alone = {form: products_alone(products, bench.device, bench.dtype) for form, products in case.products.items()}
    found = compare(
        {**case.rivals, **{f"products of {form}": run for form, (run, _) in alone.items()}}, bench.device, repetitions
    )
    plain = found.pop("reference", None)
    rows = []
    for form in [name for name in case.rivals if name != "reference"]:
        ours = found[form]
        row = {"case": case.name + form.removeprefix("ours"), "items": case.items, "ours": ours}
        if plain:
            row |= {"reference": plain, "times the reference": plain["seconds"] / ours["seconds"]}
        if form in alone:
            products = case.products[form]
            limit = found[f"products of {form}"]["seconds"] * alone[form][1]
            row |= {"operations": total(products), "weight bytes": weight_bytes(products), "limit": limit}
            row |= {"of the limit": limit / ours["seconds"]}
        rows.append(row)
    return rows


def measure(sections: list[str], small: bool, repetitions: int, results: dict[str, Any]) -> None:
    """Measure sections on every device, into the results."""
    for device, dtype in targets():
        place = results.setdefault(column(device, dtype), {"machine": {}, "sections": {}})
        bench = Workbench(device, dtype, small)
        place["machine"] = capacity = machine(bench, repetitions)
        for section in sections:
            cases = SECTIONS[section](bench)
            rows = [row for case in cases for row in measure_case(case, bench, repetitions)]
            place["sections"][section] = {"machine": capacity, "rows": rows}
        place["sections"] = {name: place["sections"][name] for name in SECTIONS if name in place["sections"]}


def main(
    only: Annotated[list[Section] | None, typer.Option(help="Sections to measure; by default all.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.")] = RESULTS,
    smoke: Annotated[bool, typer.Option(help="A small model, once: to see that all works.")] = False,
    repetitions: Annotated[int, typer.Option(min=1, help="Runs of a case, of which the median counts.")] = REPETITIONS,
) -> None:
    """Measure speed and memory."""
    file = output / "speed.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    chosen = [section.value for section in only or Section]
    if timed := [section for section in chosen if section in SECTIONS]:
        measure(timed, smoke, 1 if smoke else repetitions, results)
    if "scale" in chosen:
        results["scale"] = measure_tables(smoke)
    output.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=2) + "\n")
    (output / "speed.md").write_text(as_markdown(results))
    (output / "speed.png").write_bytes(figure_bytes(draw_speed(results)))
    typer.echo(as_markdown(results))


if __name__ == "__main__":
    typer.run(main)
