"""Tiny checkpoints of FAIRChem's own architectures, and one in real size, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import covalent_radii
from fairchem.core.models.base import HydraModel
from fairchem.core.modules.normalization.element_references import ElementReferences
from fairchem.core.modules.normalization.normalizer import Normalizer
from fairchem.core.units.mlip_unit.api.inference import MLIPInferenceCheckpoint
from torch.optim.swa_utils import AveragedModel

TASKS = ("omat", "omol", "oc20", "odac", "omc")
CHANNELS = 16
ELEMENTS = 100
SCALES = {"uma": 100.0, "esen": 100.0, "esen-direct": 20.0, "allscaip": 1.0, "uma-s-1p2": 1.0}
"""eV. Random weights give energies of any size; forces of about 1 eV/A are what tests can see errors in."""


def make(kind: str, path: Path) -> None:
    """Writes the checkpoint of one of ``SCALES`` in the package's own inference format."""
    torch.manual_seed(20240711)
    kinds = {"uma": _uma, "esen": _esen, "esen-direct": _esen_direct, "allscaip": _allscaip, "uma-s-1p2": _uma_s_1p2}
    config, datasets = kinds[kind]()
    model = HydraModel(**{key: value for key, value in config.items() if key != "_target_"})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # The package begins these near zero: neighbours would not know each other's element.
            if "source_embedding" in name or "target_embedding" in name:
                parameter.normal_(0.0, 0.5)
    properties = ("energy", "forces", "stress") if config["backbone"]["regress_stress"] else ("energy", "forces")
    averaged = AveragedModel(model).state_dict()
    torch.save(MLIPInferenceCheckpoint(config, model.state_dict(), averaged, _tasks(datasets, properties, SCALES[kind])), path)


def _uma() -> tuple[dict[str, Any], tuple[str, ...]]:
    """As UMA-S 1.2, configs/uma/training_release/backbone/K4L2_1p2.yaml of the package's repository, but smaller."""
    return _uma_of(TASKS, num_experts=4)


def _uma_s_1p2() -> tuple[dict[str, Any], tuple[str, ...]]:
    """As large as UMA-S 1.2: the same file and uma_sm_full_conserve_1p2.yaml beside it, with the layers that need no extension."""
    channels = dict.fromkeys(("sphere_channels", "hidden_channels", "edge_channels"), 128)
    return _uma_of(
        ("omat", "omol", "oc20", "oc22", "oc25", "odac", "omc"),
        num_experts=64,
        num_layers=4,
        num_distance_basis=32,
        cutoff=6.0,
        **channels,
    )


def _uma_of(tasks: tuple[str, ...], **size: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    mapping = {task: task for task in tasks}
    backbone = _backbone(
        moe_layer_type="pytorch",
        regress_stress=True,
        direct_forces=False,
        dataset_mapping=mapping,
        charge_balanced_channels=[0, 1, 2],
        **size,
    )
    head = {
        "module": "fairchem.core.models.uma.escn_moe.DatasetSpecificMoEWrapper",
        "head_cls": "fairchem.core.models.uma.escn_md.MLP_EFS_Head",
        "head_kwargs": {"wrap_property": False},
        "dataset_mapping": mapping,
    }
    # Without a model_id the package takes it for the withdrawn UMA 1.0 and refuses it.
    return _hydra(backbone, {"energyandforcehead": head}, model_id="UMA-tiny"), tasks


def _esen() -> tuple[dict[str, Any], tuple[str, ...]]:
    """As configs/esen/uma_sm_conserving_omol_4M.yaml; the package derives its stress, which it was not trained on."""
    backbone = _backbone(num_experts=0, regress_stress=False, direct_forces=False, dataset_mapping={"omol": "omol"})
    return _hydra(backbone, {"energyandforcehead": _single("fairchem.core.models.uma.escn_md.MLP_EFS_Head")}), ("omol",)


def _esen_direct() -> tuple[dict[str, Any], tuple[str, ...]]:
    """As configs/esen/uma_sm_direct_omol_4M.yaml: forces from a head of their own, no stress, few neighbours."""
    backbone = _backbone(
        num_experts=0, regress_stress=False, direct_forces=True, dataset_mapping={"omol": "omol"}, max_neighbors=30
    )
    heads = {
        "omol_energy": {"module": "fairchem.core.models.uma.escn_md.MLP_Energy_Head"},
        "omol_forces": {"module": "fairchem.core.models.uma.escn_md.Linear_Force_Head"},
    }
    return _hydra(backbone, heads, pass_through_head_outputs=False), ("omol",)


def _allscaip() -> tuple[dict[str, Any], tuple[str, ...]]:
    """As configs/allscaip/backbone/md_NeNo.yaml and omol_all_ft.yml: attention among all atoms, over neighbours within 6 A."""
    backbone = {
        "model": "fairchem.core.models.allscaip.AllScAIP.AllScAIPBackbone",
        "num_layers": 2,
        "hidden_size": 32,
        "direct_forces": False,
        "regress_forces": True,
        "regress_stress": False,
        "use_compile": False,
        "use_padding": False,
        "dataset_list": ["omol"],
        "use_node_path": True,
        "use_freq_mask": False,
        "use_sincx_mask": False,
        "max_num_elements": 110,
        "max_batch_size": 96,
        "max_atoms": 350,
        "max_radius": 6.0,
        "knn_k": 30,
        "knn_pad_size": 50,
        "atten_name": "memory_efficient",
        "atten_num_heads": 2,
        "edge_distance_expansion_size": 32,
    }
    head = _single("fairchem.core.models.allscaip.AllScAIP.AllScAIPGradientEnergyForceStressHead")
    return _hydra(backbone, {"energyandforcehead": head}), ("omol",)


def _backbone(**further: Any) -> dict[str, Any]:
    return {
        "model": "fairchem.core.models.uma.escn_moe.eSCNMDMoeBackbone",
        "use_composition_embedding": True,
        "max_num_elements": ELEMENTS,
        "sphere_channels": CHANNELS,
        "hidden_channels": CHANNELS,
        "edge_channels": CHANNELS,
        "num_distance_basis": 16,
        "num_layers": 2,
        "lmax": 2,
        "mmax": 2,
        "cutoff": 5.0,
        "max_neighbors": 300,
        "otf_graph": True,
        "regress_forces": True,
        "norm_type": "rms_norm_sh",
        "act_type": "gate",
        "ff_type": "spectral",
        "chg_spin_emb_type": "rand_emb",
        "cs_emb_grad": True,
        **further,
    }


def _single(head: str) -> dict[str, Any]:
    return {
        "module": "fairchem.core.models.uma.escn_moe.DatasetSpecificSingleHeadWrapper",
        "head_cls": head,
        "head_kwargs": {"wrap_property": False},
        "dataset_names": ["omol"],
    }


def _hydra(
    backbone: dict[str, Any], heads: dict[str, Any], pass_through_head_outputs: bool = True, **further: Any
) -> dict[str, Any]:
    return {
        "_target_": "fairchem.core.models.base.HydraModel",
        "backbone": backbone,
        "heads": heads,
        "pass_through_head_outputs": pass_through_head_outputs,
        **further,
    }


def _tasks(datasets: tuple[str, ...], properties: tuple[str, ...], scale: float) -> list[dict[str, Any]]:
    """The tasks' configurations, as the package's trainer writes them: normalisation and energies of the elements."""
    tasks = []
    for k, dataset in enumerate(datasets):
        references = [0.0, *(-2.0 - 0.5 * k - 3.0 * covalent_radii[1:ELEMENTS])]
        for name in properties:
            level, dimensions = {"energy": ("system", [1]), "forces": ("atom", [3]), "stress": ("system", [1, 9])}[name]
            task = {
                "_target_": "fairchem.core.units.mlip_unit.mlip_unit.Task",
                "name": f"{dataset}_{name}",
                "level": level,
                "property": name,
                "out_spec": {
                    "_target_": "fairchem.core.units.mlip_unit.mlip_unit.OutputSpec",
                    "dim": dimensions,
                    "dtype": "float32",
                },
                "normalizer": Normalizer(mean=0.0, rmsd=scale),
                "datasets": [dataset],
                "metrics": [],
            }
            if name == "energy":
                task["element_references"] = ElementReferences(torch.tensor(np.array(references), dtype=torch.float64))
            tasks.append(task)
    return tasks
