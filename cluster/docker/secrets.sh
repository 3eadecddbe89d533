#!/usr/bin/env bash
# Makes the secrets that compose.yaml names, once, in cluster/docker/secrets, which git and the images leave out.
set -euo pipefail
cd "$(dirname "$0")"

if [[ -e secrets ]]; then
    echo "secrets/ is there already; remove it for new ones (and the volumes with it: they know the old ones)" >&2
    exit 1
fi

random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

# The folder keeps others on this machine out. The files are readable to all, as each container has a user of its own.
mkdir -m 700 secrets
cd secrets
random >ray_token
random >postgres_password
key=$(random) secret=$(random)
printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$key" "$secret" >s3_credentials
printf '{"identities": [{"name": "mlflow", "credentials": [{"accessKey": "%s", "secretKey": "%s"}],
  "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}\n' "$key" "$secret" >s3_config.json
chmod 444 ./*
