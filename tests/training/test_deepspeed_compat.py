"""Each workaround for DeepSpeed is still needed, and works."""

import json
import subprocess
import sys
import types

import pytest
import torch

from effopd.common.errors import ArtifactError
from effopd.training import deepspeed_compat
from effopd.training.deepspeed_compat import flat_masters, linear_map

IMPORTS = """
import contextlib, json, sys, torch, types
from effopd.training import deepspeed_compat
if {plain}:
    deepspeed_compat.mock = types.SimpleNamespace(patch=lambda *_: contextlib.nullcontext())
compile = torch.compile
deepspeed_compat.import_deepspeed(on_cpu=True)
import deepspeed.runtime.zero.stage3
assert torch.compile is compile
print(json.dumps(["torch._dynamo.convert_frame" in sys.modules, "deepspeed.runtime.zero.muon" in sys.modules]))
"""


@pytest.mark.parametrize("plain", [True, False])
def test_importing_deepspeed_imports_no_compiler(plain):
    """Without the patch the optimizer Muon has functions compiled, which imports the compiler."""
    done = subprocess.run([sys.executable, "-c", IMPORTS.format(plain=plain)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [plain, True]


def test_a_linear_map_is_replaced_inside_the_block_alone():
    plain = torch.nn.functional.linear

    def own(*arguments):
        return plain(*arguments)

    with pytest.raises(KeyError), linear_map(own):
        assert torch.nn.functional.linear is own
        torch.nn.functional.linear = None  # what DeepSpeed does inside
        raise KeyError
    assert torch.nn.functional.linear is plain


def test_masters_that_lie_elsewhere_in_another_version_are_an_error_and_not_skipped():
    optimizer = types.SimpleNamespace(fp32_groups_flat_partition=(torch.ones(2),))
    assert flat_masters(optimizer)[0].tolist() == [1.0, 1.0]
    with pytest.raises(ArtifactError, match="DeepSpeed's SimpleNamespace keeps its masters where effopd does not know"):
        flat_masters(types.SimpleNamespace())


def test_on_a_cpu_no_extension_is_compiled():
    deepspeed = deepspeed_compat.import_deepspeed(on_cpu=True)
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False
