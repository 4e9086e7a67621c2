"""Own weights in the place of the backbone's: what then flows, and what does not fit."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import backbone as tiny
from tiny_prunable import NETWORKS, prunable
from torch import nn

from subtune_deploy.errors import ModelError
from subtune_deploy.tasks import candidate_task
from subtune_deploy.versions import assemble, flow, narrow_streams, thinner, version_of


@pytest.mark.parametrize("name", NETWORKS)
def test_the_backbones_own_weights_flow_as_it_was_traced(name: str) -> None:
    network = prunable(name)
    seen = flow(network, {})
    assert seen.macs == {node.name: node.macs for node in network.topology.nodes}
    (head,) = network.heads
    assert seen.features[head] == version_of(network, {}, head).in_features
    for block in network.blocks:
        (call,) = seen.calls[f"block{block.index}"]
        assert call.shapes.sizes[1:] == block.output_shape
        assert call.fits(network.model.get_submodule(block.name))
        assert not call.fits(nn.Flatten())


def test_whole_versions_of_any_kind_are_not_thinner() -> None:
    network = tiny("tokens", 3, 8)
    task = candidate_task(network, "birds", (1, 3), seed=1, classes=9, siamese=True)
    versions = {**task.versions, "position": torch.zeros_like(network.model.position)}
    assert not thinner(network, versions)
    assert not narrow_streams(network, versions)
    assert flow(network, versions).shapes == flow(network, {}).shapes
    given = torch.randn(2, *network.input.shape)
    with torch.no_grad():
        assert not torch.equal(assemble(network, versions, siamese=True)(given), network.model(given)[:, :9])


def test_what_does_not_fit_is_told_where_and_torch_keeps_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    network = tiny("chain", 4, 8)
    with pytest.raises(ModelError, match=r"blocks\.2 of tiny-chain does not fit what is around it") as caught:
        flow(network, {"block3": nn.Conv2d(7, 8, 1)})
    assert "\n" not in caught.value.message
    assert capfd.readouterr() == ("", "")
