"""All pages of docs/results and their figures, from the JSON alone.

python benchmarks/tables.py
"""

import accelerator
import allocation
import blocks
import combinations
import common
import compatibility
import gradual
import in_use
import judges
import latency
import link
import over_time
import paper
import peers
import promise
import relevance
import search
import sketches
import speed
import stages
import swaps
import time_limit
import updates
import wire

PAGES = {  # how the page is made of its blocks
    "paper": paper.page,
    "peers": peers.page,
    "latency": latency.page,
    "compatibility": compatibility.page,
    "relevance": relevance.page,
    "accelerator": accelerator.page,
    "wire": wire.page,
    "updates": updates.page,
    "link": link.page,
    "over_time": over_time.page,
    "in_use": in_use.page,
    "speed": speed.page,
    "sketches": sketches.page,
    "gradual": gradual.page,
    "search": search.page,
    "allocation": allocation.page,
    "swaps": swaps.page,
    "blocks": blocks.page,
    "judges": judges.page,
    "time_limit": time_limit.page,
    "stages": stages.page,
    "combinations": combinations.page,
    "promise": promise.page,
}


def texts():
    """Return each page's text by its name."""
    found = {name: common.read(name) for name in PAGES} | {"paper": paper.found()}
    return {name: common.text_of(page(found[name])) for name, page in PAGES.items()}


def main():
    for name, text in texts().items():
        (common.PAGES / f"{name}.md").write_text(text)
    paper.draw()
    peers.draw()


if __name__ == "__main__":
    main()
