"""Write the dashboards into the role grafana."""

from __future__ import annotations

from dashboards import FILES, rendered

if __name__ == "__main__":
    for name, text in rendered().items():
        (FILES / name).write_text(text, encoding="utf-8")
