"""Pictures of the results. matplotlib is imported when one is drawn, and no window is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from forcegate.calculations import geometry
from forcegate.calculations.bulk_modulus import EQUATIONS, BulkModulusAnswer
from forcegate.calculations.elasticity import ElasticityAnswer
from forcegate.calculations.heat_capacity import HeatCapacityAnswer
from forcegate.calculations.interaction_energy import InteractionEnergyAnswer
from forcegate.calculations.stability import StabilityAnswer


def save_plot(answer: Any, path: Path) -> None:
    """Draws ``answer`` into ``path``, whose ending names the format.

    Raises:
        SetupError: matplotlib is not installed.
        TypeError: there is no picture of such an answer.
    """
    geometry.optional("matplotlib")
    from matplotlib.figure import Figure

    drawing = next((draw for kind, draw in _DRAWINGS.items() if isinstance(answer, kind)), None)
    if drawing is None:
        raise TypeError(f"There is no picture of {type(answer).__name__}.")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    drawing(figure, answer)
    figure.savefig(path, dpi=150)


def _stability(figure: Any, answer: StabilityAnswer) -> None:
    quantities = [("temperature", "temperature (K)"), ("energy", "potential energy (eV)"), ("rmsd", "rmsd (A)")]
    if "volume" in answer.series:
        quantities.append(("volume", "volume (A$^3$)") if answer.ensemble == "npt" else ("pressure", "pressure (bar)"))
    for axes, (name, label) in zip(figure.subplots(2, 2, sharex=True).ravel(), quantities, strict=False):
        axes.plot(answer.series.get("time", []), answer.series.get(name, []), linewidth=1)
        axes.set(xlabel="time (ps)", ylabel=label)
    figure.suptitle("stable" if answer.is_stable else f"not stable. {answer.blow_up or ''}")


def _bulk_modulus(figure: Any, answer: BulkModulusAnswer) -> None:
    from ase.units import GPa

    axes = figure.subplots()
    smooth = np.linspace(answer.volumes.min(), answer.volumes.max(), 200)
    fit = (answer.equilibrium_energy, answer.bulk_modulus * GPa, answer.bulk_modulus_derivative, answer.equilibrium_volume)
    axes.plot(smooth, EQUATIONS[answer.eos](smooth, *fit), color="tab:gray", label=answer.eos.replace("_", " "))
    axes.plot(answer.volumes, answer.energies, "o", label="calculated")
    axes.axvline(answer.equilibrium_volume, linestyle=":", color="tab:gray")
    axes.set(xlabel="volume (A$^3$)", ylabel="energy (eV)")
    axes.set_title(f"B = {answer.bulk_modulus:.2f} GPa, B' = {answer.bulk_modulus_derivative:.2f}, r$^2$ = {answer.fitting_r2:.6f}")
    axes.legend()


def _phonons(figure: Any, answer: HeatCapacityAnswer) -> None:
    left, middle, right = figure.subplots(1, 3, gridspec_kw={"width_ratios": (4, 1, 2.5)})
    ticks: list[tuple[float, str]] = []
    for distances, frequencies, (start, end) in zip(
        answer.bands.distances, answer.bands.frequencies, answer.bands.labels, strict=True
    ):
        left.plot(distances, frequencies, color="tab:blue", linewidth=1)
        if ticks and ticks[-1][1] != start:
            ticks[-1] = (ticks[-1][0], f"{ticks[-1][1]}|{start}")
        ticks += [(distances[0], start)] * (not ticks) + [(distances[-1], end)]
    left.set_xticks([x for x, _ in ticks], [name.replace("G", "$\\Gamma$") for _, name in ticks])
    left.axhline(0, color="black", linewidth=0.5)
    left.set(ylabel="frequency (THz), imaginary below 0", xlim=(ticks[0][0], ticks[-1][0]))
    middle.plot(answer.dos, answer.dos_frequencies, linewidth=1)
    middle.set(xlabel="states/THz", ylim=left.get_ylim())
    middle.set_yticklabels([])
    right.plot(answer.temperatures, answer.heat_capacities_per_atom, "o-", markersize=3)
    right.set(xlabel="temperature (K)", ylabel="C$_V$ (J/mol/K per atom)")
    if answer.has_imaginary_modes:
        figure.suptitle("Imaginary modes: this structure is no minimum", color="tab:red")


def _elasticity(figure: Any, answer: ElasticityAnswer) -> None:
    figure.set_layout_engine("compressed")  # centres the square
    axes = figure.subplots()
    limit = float(np.abs(answer.stiffness).max())
    image = axes.imshow(answer.stiffness, cmap="RdBu_r", vmin=-limit, vmax=limit)
    names = ("xx", "yy", "zz", "yz", "xz", "xy")
    axes.set_xticks(range(6), names)
    axes.set_yticks(range(6), names)
    for row, column in np.ndindex(6, 6):
        value = float(np.round(answer.stiffness[row, column], 1)) + 0.0  # no "-0.0"
        colour = "white" if abs(value) > 0.6 * limit else "black"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, label="stiffness (GPa)")


def _interaction(figure: Any, answer: InteractionEnergyAnswer) -> None:
    axes = figure.subplots()
    axes.plot([site.distance for site in answer.sites], [site.interaction_energy for site in answer.sites], ".", label="as placed")
    if answer.relaxed_sites:
        relaxed = answer.relaxed_sites
        axes.plot([site.distance for site in relaxed], [site.interaction_energy for site in relaxed], "o", label="relaxed")
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set(xlabel="nearest atoms of host and guest (A)", ylabel="interaction energy (eV)", title=answer.guest)
    axes.legend()


_DRAWINGS: dict[type, Callable[[Any, Any], None]] = {
    StabilityAnswer: _stability,
    BulkModulusAnswer: _bulk_modulus,
    HeatCapacityAnswer: _phonons,
    ElasticityAnswer: _elasticity,
    InteractionEnergyAnswer: _interaction,
}
