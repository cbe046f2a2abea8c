"""The attention backends beneath the model: what sees what, block by block."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adadpo_lightning.errors import UserError
from adadpo_lightning.models.attention import cuda as attention_cuda
from adadpo_lightning.models.attention.cpu import tree
from adadpo_lightning.models.attention.cuda import block_mask, flex, seen_blocks, varlen
from adadpo_lightning.models.attention.layout import AttentionRule, PackedLayout
from adadpo_lightning.models.attention.registry import choose_backend, packed_attention, segments

# Pairs, pairs without a rejected answer, and prompts with up to four answers.
GROUP = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 12))
LIST = st.lists(st.integers(1, 12), min_size=2, max_size=5).map(tuple)
SEGMENTS = st.lists(st.one_of(GROUP, LIST), min_size=1, max_size=4)
WINDOWS = st.one_of(st.none(), st.integers(1, 15))
CPU = torch.device("cpu")


def seen(layout, window):
    """The definition, token by token: (T, T), query by key."""
    tokens = []
    for group, (prompt, *answers) in enumerate(layout.segments):
        tokens += [(group, "prompt", i) for i in range(prompt)]
        for number, answer in enumerate(answers):
            tokens += [(group, number, prompt + i) for i in range(answer)]

    def sees(query, key):
        near = 0 <= query[2] - key[2] < (window or 1000)
        return query[0] == key[0] and key[1] in ("prompt", query[1]) and near

    return torch.tensor([[sees(query, key) for key in tokens] for query in tokens])


def make(layout, heads=4, key_heads=2, width=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    length = sum(map(sum, layout.segments))

    def normal(count):
        return torch.randn(1, count, length, width, generator=generator, dtype=dtype).requires_grad_()

    return normal(heads), normal(key_heads), normal(key_heads)


def by_definition(query, key, value, layout, rule):
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    logits = query @ key.transpose(2, 3) * rule.scale
    if rule.softcap is not None:
        logits = rule.softcap * torch.tanh(logits / rule.softcap)
    return logits.masked_fill(~seen(layout, rule.window), -torch.inf).softmax(-1) @ value


def output_and_grads(function, layout, rule, **kwargs):
    inputs = make(layout, **kwargs)
    output = function(*inputs, layout, rule)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    return output.detach(), torch.autograd.grad(output, inputs, upstream)


@pytest.mark.parametrize(("backend", "softcap"), [(segments, None), (segments, 2.0), (tree, None)])
@settings(max_examples=20, deadline=None)
@given(lengths=SEGMENTS, window=WINDOWS)
def test_backend_is_the_definition(backend, softcap, lengths, window):
    rule = AttentionRule(0.3, window, softcap)
    layout = PackedLayout(tuple(lengths), "unused", CPU)
    actual = output_and_grads(backend, layout, rule)
    torch.testing.assert_close(actual, output_and_grads(by_definition, layout, rule), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("window", [None, 100])
def test_tree_over_several_real_blocks(window):
    layout = PackedLayout(((150, 131, 300), (20, 260, 128)), "tree", CPU)
    rule = AttentionRule(0.3, window)
    actual = output_and_grads(tree, layout, rule)
    torch.testing.assert_close(actual, output_and_grads(by_definition, layout, rule), rtol=1e-10, atol=1e-10)


def test_tree_in_bfloat16_is_as_near_to_the_definition_as_segments():
    layout = PackedLayout(((40, 130, 200),), "tree", CPU)
    rule = AttentionRule(0.3)
    exact = output_and_grads(by_definition, layout, rule)
    runs = [output_and_grads(backend, layout, rule, dtype=torch.bfloat16) for backend in (tree, segments)]
    for ours, theirs, true in zip(*[(out, *grads) for out, grads in (*runs, exact)], strict=True):
        assert (ours - true).norm() <= 1.1 * (theirs - true).norm()


@settings(max_examples=40, deadline=None)
@given(lengths=SEGMENTS, window=WINDOWS)
def test_seen_blocks(lengths, window):
    """Blocks in which anything, and in which everything is seen, as the token by token definition has it."""
    layout = PackedLayout(tuple(lengths), "flex", CPU)
    tokens = seen(layout, window)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_cuda, "BLOCK", 4)
        some, whole = seen_blocks(layout, window)
    for i, rows in enumerate(tokens.split(4)):
        for j, block in enumerate(rows.split(4, dim=1)):
            # A superset costs time and changes nothing: tokens are masked one by one in all blocks but whole ones.
            assert bool(some[i, j]) >= bool(block.any())
            assert bool(whole[i, j]) <= bool(block.all())
    if window is None:
        assert some.sum() == sum(bool(b.any()) for rows in tokens.split(4) for b in rows.split(4, dim=1))


def test_seen_blocks_leaves_out_what_lies_outside_the_window():
    layout = PackedLayout(((1024, 128, 128),), "flex", CPU)
    some, _ = seen_blocks(layout, 100)
    assert some.sum() < 25 < seen_blocks(layout, None)[0].sum()


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (50, None), (None, 2.0)])
def test_flex_is_the_definition(window, softcap):
    """Uncompiled, forward only: all that flex attention does on the CPU."""
    layout = PackedLayout(((30, 131, 60), (90, 20, 1, 40, 7), (4, 5, 0)), "flex", CPU)
    rule = AttentionRule(0.3, window, softcap)
    query, key, value = (x.detach() for x in make(layout))
    expected = by_definition(query, key, value, layout, rule)
    torch.testing.assert_close(flex(query, key, value, layout, rule), expected, rtol=1e-10, atol=1e-10)


def test_flex_mask_names_each_block_once():
    mask = block_mask(PackedLayout(((300, 131, 600),), "flex", CPU), None)
    partial, whole = mask.kv_num_blocks[0, 0], mask.full_kv_num_blocks[0, 0]
    assert (partial + whole <= torch.arange(1, len(partial) + 1)).all()
    assert whole.sum() > 0
    assert mask.q_num_blocks.sum() == partial.sum()


def flash_by_the_book(query, key, value, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa=False):
    """What variable-length flash attention documents: queries are aligned with the END of their keys."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert max_q == cu_q.diff().max()
    assert max_k == cu_k.diff().max()
    assert len(query) == cu_q[-1]
    assert len(key) == cu_k[-1]
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    left, right = window_size
    outputs = []
    for i in range(len(cu_q) - 1):
        q, k, v = query[cu_q[i] : cu_q[i + 1]], key[cu_k[i] : cu_k[i + 1]], value[cu_k[i] : cu_k[i + 1]]
        behind = torch.arange(len(k) - len(q), len(k))[:, None] - torch.arange(len(k))
        mask = (behind >= -right) & ((behind <= left) if left >= 0 else True)
        logits = torch.einsum("qhd,khd->hqk", q, k) * scale
        outputs.append(torch.einsum("hqk,khd->qhd", logits.masked_fill(~mask, -torch.inf).softmax(-1), v))
    return torch.cat(outputs)


@pytest.mark.parametrize("window", [None, 5])
def test_varlen_hands_flash_the_right_sequences(monkeypatch, window):
    """The kernel itself needs CUDA (test_gpu.py); its documented behaviour stands in for it."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", flash_by_the_book)
    layout = PackedLayout(((3, 5, 4), (1, 1, 7), (6, 2, 0)), "varlen", CPU)
    rule = AttentionRule(0.3, window)
    actual = output_and_grads(varlen, layout, rule)
    torch.testing.assert_close(actual, output_and_grads(by_definition, layout, rule), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("device", "dtype", "capped", "backend"),
    [
        ("cpu", torch.float32, False, "tree"),
        ("cpu", torch.bfloat16, False, "tree"),
        ("cpu", torch.float32, True, "segments"),
        ("cuda", torch.bfloat16, False, "varlen"),
        ("cuda", torch.bfloat16, True, "flex"),
        ("cuda", torch.float32, False, "segments"),
        ("cuda", torch.float32, True, "segments"),
        ("mps", torch.float32, False, "segments"),
    ],
)
def test_auto_takes_the_fastest_that_serves(device, dtype, capped, backend):
    assert choose_backend("auto", device, dtype, capped=capped) == backend


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "capped"),
    [
        ("tree", "cuda", torch.float32, False),
        ("tree", "cpu", torch.float32, True),
        ("varlen", "cpu", torch.bfloat16, False),
        ("varlen", "cuda", torch.float32, False),
        ("varlen", "cuda", torch.bfloat16, True),
        ("flex", "cpu", torch.float32, False),
    ],
)
def test_a_forced_backend_that_cannot_serve_is_refused(asked, device, dtype, capped):
    with pytest.raises(UserError, match=rf"model\.policy\.packed_attention: {asked} does not support"):
        choose_backend(asked, device, dtype, capped=capped)


def test_a_mask_or_no_layout_is_refused():
    layout = PackedLayout(((2, 1, 1),), "auto", CPU)
    inputs = make(layout)
    with pytest.raises(RuntimeError, match="PolicyModel"):
        packed_attention(torch.nn.Identity(), *inputs, attention_mask=None)
    with pytest.raises(RuntimeError, match="PolicyModel"):
        packed_attention(torch.nn.Identity(), *inputs, attention_mask=torch.ones(1), packed=layout)


def test_autocast_reaches_the_kernels():
    layout = PackedLayout(((5, 4, 3),), "tree", CPU)
    inputs = make(layout, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = packed_attention(torch.nn.Identity(), *inputs, attention_mask=None, packed=layout)
    assert output.dtype == torch.bfloat16
    assert output.shape == (1, 12, 4, 8)
