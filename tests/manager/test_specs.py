"""Overriding and changing specs: what is given wins, the rest stays."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.api.errors import ValidationFailed
from nexus.api.vms import VmCreate, VmSpec
from nexus.manager import specs
from nexus.manager.db.columns import StoredImage, StoredImages

FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "vcpu": st.integers(1, 32),
    "mem_mib": st.integers(16, 4096),
    "kernel": st.sampled_from([None, "a", "b"]),
    "rootfs": st.sampled_from([None, "a", "b"]),
    "kernel_args": st.sampled_from([None, "quiet", "debug"]),
    "tags": st.dictionaries(st.sampled_from("abc"), st.sampled_from("xy")),
    "start": st.booleans(),
    "restart_policy": st.sampled_from(["never", "always"]),
    "ttl": st.sampled_from([None, 60, 3600]),
    "ssh_keys": st.lists(st.just("ssh-ed25519 AAAA"), max_size=2),
    "drives": st.sampled_from([[], [{"name": "d", "size_mib": 1}], [{"name": "e", "image": "x"}]]),
    "nics": st.sampled_from([[{}], [{}, {"network": "lab"}]]),
    "rootfs_limits": st.sampled_from([None, {"iops": 1}, {"bandwidth_mib_s": 2.0}]),
    "balloon": st.sampled_from([None, {"target_mib": 1}]),
}


@st.composite
def partial(draw: st.DrawFn) -> VmSpec:
    """A spec of which some fields are given."""
    names = draw(st.sets(st.sampled_from(sorted(FIELDS))))
    return VmSpec.model_validate({name: draw(FIELDS[name]) for name in sorted(names)})


NOTHING = VmSpec()


@settings(max_examples=60, deadline=None)
@given(partial(), partial(), partial())
def test_what_is_given_wins_and_the_rest_stays(base: VmSpec, one: VmSpec, two: VmSpec) -> None:
    base = specs.whole(base)
    assert specs.changed(base, NOTHING) == specs.overridden(base, NOTHING) == base
    for made, tags in (
        (specs.changed(base, one), one.tags if "tags" in one.model_fields_set else base.tags),
        (specs.overridden(base, one), {**base.tags, **one.tags}),
    ):
        assert made.model_fields_set == set(specs.FIELDS)
        assert made.tags == tags
        for name in set(specs.FIELDS) - {"tags"}:
            source = one if name in one.model_fields_set else base
            assert getattr(made, name) == getattr(source, name)
    for rule in (specs.changed, specs.overridden):
        assert rule(rule(base, one), one) == rule(base, one)
        both = one.model_copy(update=specs.given(two))
        if rule is specs.overridden:
            both = both.model_copy(update={"tags": {**one.tags, **two.tags}})
        assert rule(rule(base, one), two) == rule(base, both)


@settings(max_examples=60, deadline=None)
@given(partial(), partial())
def test_differences_are_there_when_specs_differ(base: VmSpec, one: VmSpec) -> None:
    images = images_of("k")
    assert specs.differences((base, images), (base, images)) == []
    made = specs.changed(base, one)
    told = specs.differences((base, images), (made, images))
    names = {change.field.partition(".")[0] for change in told}
    by_content = {"kernel", "initrd", "rootfs"}
    assert names == {
        name
        for name in set(specs.FIELDS) - by_content
        if getattr(base, name) != getattr(made, name)
    }
    back = specs.differences((made, images), (base, images))
    swapped = {(change.field, str(change.after), str(change.before)) for change in back}
    assert swapped == {(change.field, str(change.before), str(change.after)) for change in told}


def test_images_differ_by_content() -> None:
    (change,) = specs.differences((NOTHING, images_of("0")), (NOTHING, images_of("1")))
    shown = ("kernel", f"k@{'0' * 12}", f"k@{'1' * 12}")
    assert (change.field, change.before, change.after) == shown


def test_an_end_that_is_asked_for_is_the_only_one() -> None:
    spec = VmSpec(ttl=60)
    asked = VmCreate.model_validate({"name": "a", "expires_at": "2030-01-01T00:00:00Z"})
    assert specs.request_of(spec, asked).ttl is None
    assert specs.request_of(spec, VmCreate(name="a", count=2)) == VmCreate(
        name="a", count=2, ttl=60
    )


@pytest.mark.parametrize(
    "spec",
    [
        {"drives": [{"name": "d", "volume": "data"}]},
        {"nics": [{"ip": "10.0.0.9"}]},
        {"drives": [{"name": "d", "size_mib": 1}] * 2},
        {"mem_mib": 64, "balloon": {"target_mib": 60}},
    ],
)
def test_what_is_no_template(spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationFailed) as refused:
        specs.check(VmSpec.model_validate(spec))
    assert refused.value.suggestion


def images_of(digit: str) -> StoredImages:
    image_id = "0193c5e4-0000-7000-8000-000000000000"
    sha256 = (digit if digit in "01" else "a") * 64
    kernel = StoredImage(id=image_id, kind="kernel", name="k", sha256=sha256, size_bytes=1)
    return StoredImages(kernel=kernel, initrd=None, rootfs=None, drives={})
