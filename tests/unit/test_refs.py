"""Names of objects: what text becomes which value, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routerd.refs import Ref, service_ref


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("svc/default/web", Ref("svc", "default", "web")),
        ("ConfigMap/kube-system/bgp-config", Ref("ConfigMap", "kube-system", "bgp-config")),
        ("EgressPolicy/web", Ref("EgressPolicy", name="web")),
        ("path/192.0.2.0/24", Ref("path", name="192.0.2.0/24")),
        ("file//etc/routerd/manifests", Ref("file", name="/etc/routerd/manifests")),
        ("peer/2001:db8::1", Ref("peer", name="2001:db8::1")),
        ("bgp", Ref("bgp")),
    ],
)
def test_text_and_value(text: str, ref: Ref) -> None:
    assert Ref.parse(text) == ref
    assert str(ref) == text


@given(st.lists(st.sampled_from(["svc", "Pod", "egress", "a", "", "/"])).map("/".join) | st.text())
def test_every_text_comes_back(text: str) -> None:
    assert str(Ref.parse(text)) == text
    assert Ref.parse(str(Ref.parse(text))) == Ref.parse(text)


def test_a_service_is_named_by_the_key_under_which_it_is_held() -> None:
    assert service_ref("default/web") == Ref("svc", "default", "web")
    assert service_ref("default/web").key == "default/web"
    assert Ref("node", name="a").key == "a"
