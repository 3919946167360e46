#!/usr/bin/env bash
# A certificate authority and one certificate that every node of a Ray cluster shows.
#
#   cluster/deploy/make_certificates.sh FOLDER NAME...
#
# NAME: each host name and IP address of a node, as the others reach it; 127.0.0.1 and localhost are always there.
# Files: ca.crt, tls.crt, tls.key (copy these three to every node) and ca.key (keep it elsewhere: who has it makes nodes).
# The authority in FOLDER is used again where there is one. DAYS=365 says how long the certificate holds.
set -euo pipefail
umask 077

[ $# -gt 0 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
folder=$1
shift
days=${DAYS:-365}
mkdir -p "$folder"

if [ ! -f "$folder/ca.key" ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 -days 3650 \
        -subj "/CN=wmpo-ray cluster CA" -addext "basicConstraints=critical,CA:TRUE,pathlen:0" \
        -addext "keyUsage=critical,keyCertSign,cRLSign" -keyout "$folder/ca.key" -out "$folder/ca.crt" 2> /dev/null
fi

names="DNS:localhost,IP:127.0.0.1"
for name in "$@"; do
    if [[ $name =~ ^[0-9.]+$ || $name == *:* ]]; then names+=",IP:$name"; else names+=",DNS:$name"; fi
done
request=$(mktemp)
trap 'rm -f "$request"' EXIT
openssl req -new -newkey rsa:2048 -nodes -subj "/CN=wmpo-ray node" -keyout "$folder/tls.key" -out "$request" 2> /dev/null
# Every Ray process is server and client at once.
openssl x509 -req -in "$request" -CA "$folder/ca.crt" -CAkey "$folder/ca.key" -CAcreateserial -sha256 -days "$days" \
    -extfile <(printf '%s\n' "subjectAltName=$names" "extendedKeyUsage=serverAuth,clientAuth" \
        "basicConstraints=CA:FALSE" "keyUsage=critical,digitalSignature,keyEncipherment") \
    -out "$folder/tls.crt" 2> /dev/null
chmod 600 "$folder"/*.key
openssl verify -CAfile "$folder/ca.crt" "$folder/tls.crt"
