#!/usr/bin/env python3
"""`attacker.py FAMILY/ATTACK NET SECONDS`: one attack, in a process of its own; its counts as JSON at the end."""

import json
import os
import sys

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, "bench"))

import families
import storm


def main():
    name, net, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    family, attack = families.named(name)
    place = family.place(net)
    os.nice(storm.NICE)
    attackers = storm.Storm(family.target(net), family.attackers(net), seconds)
    attack(attackers, place)
    print(json.dumps(attackers.counts))


if __name__ == "__main__":
    main()
