"""What pages are asserted with."""

import re
from base64 import b64encode
from hashlib import sha256

from ppl_vae import page


def without_scripts(html):
    """A page but for the scripts that it may have: its own, by hash, and data without markup."""
    own = re.findall(r"<script>(.*?)</script>", html, re.S)
    named = re.findall(r"script-src '(sha256-[^']*)'", html)
    found = ["sha256-" + b64encode(sha256(text.encode()).digest()).decode() for text in own]
    assert found == named and len(own) <= 1
    assert all(text == page._script().text for text in own)
    html = html.replace(f"<script>{own[0]}</script>", "") if own else html
    return re.sub(r'<script type="application/json" id="[a-z-]+">[^<>&]*</script>', "", html)
