#!/usr/bin/env bash
# Tells Ray that this spot node is about to be taken away, as soon as the cloud says so. The node's trials then write a
# checkpoint and go on elsewhere. Runs on each worker: spot_notice.sh aws|gcp|azure
set -uo pipefail

cloud=${1:-}
if [[ ! $cloud =~ ^(aws|gcp|azure)$ ]]; then
    echo "spot_notice.sh aws|gcp|azure" >&2
    exit 2
fi
metadata=${METADATA:-http://169.254.169.254}

ask() { curl --silent --fail --max-time 5 --noproxy '*' "$@"; }

# Prints the seconds that are left, once the node has been given notice.
notice() {
    case $cloud in
    aws) # two minutes
        local session
        session=$(ask --request PUT --header "X-aws-ec2-metadata-token-ttl-seconds: 60" "$metadata/latest/api/token") &&
            ask --header "X-aws-ec2-metadata-token: $session" "$metadata/latest/meta-data/spot/instance-action" \
                >/dev/null && echo 110
        ;;
    gcp) # half a minute
        [[ $(ask --header "Metadata-Flavor: Google" "$metadata/computeMetadata/v1/instance/preempted") == TRUE ]] &&
            echo 25
        ;;
    azure) # half a minute at least
        local name
        name=$(ask --header "Metadata: true" \
            "$metadata/metadata/instance/compute/name?api-version=2021-02-01&format=text") &&
            ask --header "Metadata: true" "$metadata/metadata/scheduledevents?api-version=2020-07-01" |
            python3 -c '
import json, sys
events = json.load(sys.stdin)["Events"]
sys.exit(not any(event["EventType"] == "Preempt" and sys.argv[1] in event["Resources"] for event in events))
' "$name" && echo 25
        ;;
    esac
}

until left=$(notice); do
    sleep "${INTERVAL:-5}"
done
echo "$(date --utc +%FT%TZ): notice, $left s left"
ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "spot notice" --deadline-remaining-seconds "$left"
