"""Strategies for bad input: flag values, damaged files, altered JSON."""

from hypothesis import strategies as st

# No NUL, which a command line cannot hold; lone surrogates stand for bytes that are not UTF-8.
_characters = st.characters(exclude_characters="\0", exclude_categories=())
_known = st.sampled_from(
    [
        *("", " ", ",", ",,", ":", "=", "-1", "0", "1e400", "nan", "-inf", "0x10", "１２", "²"),
        *("None", "true", "a,a", "a:1,a:2", "causal_lm:1", "data:0", "data:2,data:2", "/dev/null"),
        *("~nobody", "%s%n", "{text}", "{answer}", "{0}", "<b>", "digits:", "finetune.min_steps"),
        *("model.remat_policy", "*", "[", "(?", "a\nb", "\udcff", "x" * 300, "9" * 5000, "9" * 20),
        *("[" * 5000, "{" * 9, "\x1b[2J", "\u202etxt", "..", "/", "1_000", "１:１", "+1", " 5 "),
    ]
)
values = st.one_of(
    _known,
    st.text(_characters, max_size=12),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(str),
    st.lists(st.text(_characters, max_size=4), max_size=4).map(",".join),
)


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """A file's bytes, damaged in one of seven ways."""
    how = draw(st.sampled_from(["cut", "flip", "insert", "replace", "empty", "recode", "repeat"]))
    place = draw(st.integers(0, len(whole)))
    some = draw(st.binary(min_size=1, max_size=64))
    if how == "cut":
        return whole[:place]
    if how == "flip":
        return (
            whole[:place]
            + bytes(255 - byte for byte in whole[place : place + 1])
            + whole[place + 1 :]
        )
    if how == "insert":
        return whole[:place] + some + whole[place:]
    if how == "replace":
        return some
    if how == "recode":
        text = whole.decode("utf-8", "replace")
        return text.encode(
            draw(st.sampled_from(["utf-16", "utf-32", "cp500", "utf-8-sig"])), "replace"
        )
    if how == "repeat":
        return whole[:place] * draw(st.integers(2, 5))
    return b""


plain = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**65), 2**65),
        st.sampled_from([10**400, -1, 0, 1, 2**31, "\udc80", "\0", "x" * 3000]),
        st.floats(),
        st.text(max_size=8),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def altered(draw, whole):
    """JSON with one value, anywhere in it, removed or replaced by any other."""
    if isinstance(whole, dict) and whole and draw(st.integers(0, 9)):
        name = draw(st.sampled_from(sorted(whole)))
        if not draw(st.integers(0, 5)):
            return {key: value for key, value in whole.items() if key != name}
        return whole | {name: draw(altered(whole[name]))}
    if isinstance(whole, list) and whole and draw(st.integers(0, 9)):
        n = draw(st.integers(0, len(whole) - 1))
        return [*whole[:n], draw(altered(whole[n])), *whole[n + 1 :]]
    return draw(plain)
