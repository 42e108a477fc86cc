{{- /* What several templates share. Functions beyond Go's own are few: etc/chart.go has them too, for tests. */ -}}

{{- /* How the names of all objects begin: the release, and the chart unless the release is called like it. */ -}}
{{- define "notary.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride }}
{{- else if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 48 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 48 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* What selectors look for: these never change while a release lives. */ -}}
{{- define "notary.selectors" -}}
app.kubernetes.io/name: notary
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* The plain manifests, which nobody manages, have only those. */ -}}
{{- define "notary.labels" -}}
{{ include "notary.selectors" . }}
{{- with .Release.Service }}
app.kubernetes.io/managed-by: {{ . }}
helm.sh/chart: {{ $.Chart.Name }}-{{ $.Chart.Version }}
{{- end }}
{{- end }}

{{- define "notary.version" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- /* The image of a daemon; the argument is (dict "root" $ "daemon" "server"), as that of all below. */ -}}
{{- define "notary.image" -}}
{{- $own := index .root.Values .daemon -}}
{{- with .root.Values.image.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ $own.image }}
{{- if $own.digest }}@{{ $own.digest }}{{ else }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "notary.pod" -}}
{{- $own := index .root.Values .daemon -}}
automountServiceAccountToken: false
# Else Kubernetes describes the Services notary-server and notary-signer in variables that begin as ours do.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile:
    type: RuntimeDefault
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- range $member := list "nodeSelector" "affinity" "tolerations" }}
{{- with index $own $member }}
{{ $member }}: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{- define "notary.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{- define "notary.server.config" -}}
{
  "server": {
    "http_addr": ":4443",
    "tls_cert_file": "/run/notary/tls/tls.crt",
    "tls_key_file": "/run/notary/tls/tls.key"
  },
  "trust_service": {
    "type": "remote",
    "hostname": "{{ include "notary.fullname" . }}-signer",
    "port": 7899,
    "key_algorithm": "ecdsa",
    "tls_ca_file": "/run/notary/client/ca.crt",
    "tls_client_cert": "/run/notary/client/tls.crt",
    "tls_client_key": "/run/notary/client/tls.key"
  },
  "storage": {"backend": "{{ .Values.database }}"},
  "logging": {"level": "info"}
}
{{- end }}

{{- define "notary.signer.config" -}}
{
  "server": {
    "grpc_addr": ":7899",
    "tls_cert_file": "/run/notary/tls/tls.crt",
    "tls_key_file": "/run/notary/tls/tls.key",
    "client_ca_file": "/run/notary/tls/ca.crt",
    "client_names": ["{{ include "notary.fullname" . }}-server"]
  },
  "storage": {
    {{- if .Values.signer.aliases }}
    "default_alias": "{{ index .Values.signer.aliases 0 }}",
    {{- else if not (dig "storage" "keys" "wrap" "" .Values.signer.config) }}
    {{- fail "signer.aliases is empty: name a passphrase there, or what encrypts keys in signer.config.storage.keys.wrap" }}
    {{- end }}
    "backend": "{{ .Values.database }}"
  },
  "debug": {"address": ":8081", "unsafe_any_interface": true},
  "logging": {"level": "info"}
}
{{- end }}

{{- define "notary.server.json" -}}
{{ mergeOverwrite (include "notary.server.config" . | fromJson) .Values.server.config | toPrettyJson }}
{{- end }}

{{- define "notary.signer.json" -}}
{{ mergeOverwrite (include "notary.signer.config" . | fromJson) .Values.signer.config | toPrettyJson }}
{{- end }}
