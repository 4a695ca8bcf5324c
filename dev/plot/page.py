"""Writes the comparison as one HTML page: table, differing options, pictures. It refers to
nothing outside itself and follows the reader's light or dark setting. Knows neither logs nor
matplotlib."""

import html

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f24; --faint: #6b7280; --rule:
  #d9dde3; --band: #f5f6f8; --warn: #9a5b00; --run0: #0072b2; --run1: #d55e00; --run2: #009e73;
  --run3: #b0578d; --run4: #b87f00; --run5: #2f8fc4; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e6e8eb; --faint: #9aa3ad;
  --rule: #333a42; --band: #1c2026; --warn: #f0b429; --run0: #4fa8e0; --run1: #ff8a3d; --run2:
  #2cc79a; --run3: #e39ac4; --run4: #f0b429; --run5: #8fd0f5; } }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2.25rem 0 .5rem; }
p { margin: .4rem 0; max-width: 50rem; } .faint { color: var(--faint); } .warn { color:
  var(--warn); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem; text-align: right; border-bottom: 1px solid var(--rule);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: .25rem; font-weight: normal; }
td.sub:first-child { padding-left: 1.5rem; color: var(--faint); }
thead th { border-bottom: 2px solid var(--faint); } tbody tr:hover { background: var(--band); }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .45em; }
figure { margin: 1.25rem 0; } svg { width: 100%; height: auto; font-family: system-ui, sans-serif; }
.switches { position: sticky; top: 0; background: var(--paper); padding: .5rem 0; display: none; }
.switches label { margin-right: 1.25rem; cursor: pointer; } code { font-size: .92em; }
"""

# Hides the curves of a run: their groups carry ids that start with run<number>-.
SCRIPT = """
const bar = document.querySelector('.switches');
bar.style.display = 'block';
bar.addEventListener('change', event => {
  const run = event.target.value;
  for (const g of document.querySelectorAll('svg [id^="' + run + '"]'))
    g.style.display = event.target.checked ? '' : 'none';
});
"""


def esc(value):
    return html.escape(str(value))


def key(i):
    return f'<span class="key" style="background:var(--run{i % 6})"></span>'


def table_html(names, rows):
    """rows: [(label, [cell per run])]; None starts a group."""
    head = "".join(f"<th>{key(i)}{esc(name)}</th>" for i, name in enumerate(names))
    body = "".join(
        f'<tr><td class="{"sub" if text[0] == " " else ""}">{esc(text)}</td>'
        + "".join(f"<td>{esc(c)}</td>" for c in cells)
        + "</tr>\n"
        for text, cells in rows
    )
    return f"""<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>
<tbody>{body}</tbody></table></div>"""


def differences_html(names, found):
    """found: {run number: [(key, reference's value, run's value)]}"""
    if not any(found.values()):
        return """<p>The runs differ in nothing but the attention (and in names and how they were
watched and saved).</p>"""
    parts = [
        """<p class="warn">The runs differ in more than the attention: the curves do not
isolate it.</p>"""
    ]
    for i, rows in found.items():
        if rows:
            parts.append(f"<p>{key(i)}{esc(names[i])} against {esc(names[0])}:</p>")
            body = "".join(
                f"<tr><td><code>{esc(k)}</code></td><td>{esc(a)}</td><td>{esc(b)}</td></tr>"
                for k, a, b in rows
            )
            parts.append(
                f'<div class="scroll"><table><thead><tr><th>option</th><th>{esc(names[0])}</th>'
                f"<th>{esc(names[i])}</th></tr></thead><tbody>{body}</tbody></table></div>"
            )
    return "\n".join(parts)


def page(names, rows, found, svgs, notes):
    title = " against ".join([", ".join(names[1:]), names[0]])
    switches = "".join(
        f'<label><input type="checkbox" value="run{i}-" checked> {key(i)}{esc(name)}</label>'
        for i, name in enumerate(names)
    )
    figures = "\n".join(f"<figure>{svg}</figure>" for svg in svgs)
    small = "".join(f'<p class="faint">{esc(note)}</p>' for note in notes)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{esc(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{esc(title)}</h1>
<p class="faint">{esc(names[0])} is the reference.</p>
{table_html(names, rows)}
{small}
<h2>Curves</h2>
<div class="switches">{switches}</div>
{figures}
<h2>Options that differ</h2>
{differences_html(names, found)}
<script>{SCRIPT}</script>
</body>
</html>
"""
