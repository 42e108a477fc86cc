{{- /* What several templates share. Functions beyond Go's own are few: etc/chart.go has them too, for tests. */ -}}

{{- define "notary.labels" -}}
app.kubernetes.io/name: notary
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "notary.version" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "notary.tag" -}}
{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "notary.pod" -}}
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
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
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
    "hostname": "{{ .Release.Name }}-signer",
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
    "client_names": ["{{ .Release.Name }}-server"]
  },
  "storage": {
    "backend": "{{ .Values.database }}",
    "default_alias": "{{ index .Values.signer.aliases 0 }}"
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
